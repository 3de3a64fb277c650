"""The CUDA kernels compiled by g++ against an emulated device, behind the signature of `kdengine.ops.kd_loss`."""
