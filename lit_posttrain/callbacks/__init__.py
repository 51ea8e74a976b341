"""Stock Lightning callbacks and a logger: the files of a run, timings, the history of metrics."""
