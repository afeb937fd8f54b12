"""What happens beside the loop: sampling, saving, tracking."""
