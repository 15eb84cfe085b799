"""The command line: one file a command, no logic; data goes to stdout, talk to stderr."""
