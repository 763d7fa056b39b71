"""The HTTP API: sign-in, resources, and the application that serves them."""
