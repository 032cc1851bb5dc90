"""HOG, pixels, or no pre-training at all, on photographs, as ``PROTOCOL.md`` says and ``make photographs`` does."""
