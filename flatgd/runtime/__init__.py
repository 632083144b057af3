"""Services for all commands: processes, threads, display, memory, time limits, callbacks."""
