"""What a job will need before it runs: memory, time, chips."""
