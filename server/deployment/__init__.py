"""A federation over real hospitals: certificates, who is admitted, the processes, the runs on them."""
