"""What a configuration will cost, on paper: its jobs, their work, and the rates of a machine."""
