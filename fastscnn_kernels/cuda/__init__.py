"""The operations on CUDA tensors in CUDA C++."""
