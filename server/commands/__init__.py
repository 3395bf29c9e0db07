"""The commands of `jointdiff-server` by what they are about; cli.py puts them together."""
