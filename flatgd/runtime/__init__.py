"""Services for all commands: processes, display, memory, time limits, callbacks."""
