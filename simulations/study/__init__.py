"""Studies: file.py is read, plan.py makes runs of it, jobs.py and workers.py carry them out, results.py writes them."""
