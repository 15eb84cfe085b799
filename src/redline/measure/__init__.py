"""Clock, statistics, accuracy and memory; everything runs in a child process with limits."""
