"""What happens to a message between the server and a device: its bytes, its seconds and its joules."""
