"""Which runs a study needs: handed out, recorded, tried again; where and how many at a time."""
