"""Where sound comes from: microphone, recording, simulator; every sample is counted."""
