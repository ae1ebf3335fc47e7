"""What a person sees in a terminal. Above everything that it shows."""
