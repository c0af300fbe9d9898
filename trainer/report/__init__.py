"""What a finished run shows of itself: attention, sharpness, signs of failure, one page."""
