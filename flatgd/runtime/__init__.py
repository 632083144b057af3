"""What every command runs on: processes, display, memory, callbacks."""
