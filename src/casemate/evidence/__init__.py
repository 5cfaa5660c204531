"""What the guest did to its firmware: counted, attributed and shown."""
