"""Scripts and plugins for development: the documentation, and other libraries' own tests."""
