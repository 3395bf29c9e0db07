"""Pages made of data: reports and galleries. No network, no training."""
