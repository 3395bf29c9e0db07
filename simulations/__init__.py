"""Runs of server and clients together on one machine; the only place that imports both."""
