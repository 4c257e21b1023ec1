"""Reading and writing weights in the forms that exist."""
