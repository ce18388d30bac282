"""Which storage pool and share network a share is created on."""
