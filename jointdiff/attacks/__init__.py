"""Attacks that a site runs on its own data: who was trained on, what is copied, what one update gives away."""
