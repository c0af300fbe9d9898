"""The networks: windows of log-mel spectrogram in, logits of every moment out."""
