"""From a cycle's sound to its probability of being abnormal, by ONNX Runtime or TensorRT."""
