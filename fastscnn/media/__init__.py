"""Pictures and clips: reading, colours, writing."""
