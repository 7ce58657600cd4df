"""The gradients of grouped rows."""
