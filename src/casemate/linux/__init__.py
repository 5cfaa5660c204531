"""Linux kernels as data: their files, and what a boot loader prepares for them."""
