"""What is measured: figures of one run on one machine; ratios within a run are what counts."""
