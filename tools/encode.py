"""`geo3d encode` from a checkout: `python tools/encode.py --checkpoint runs/spark3d-001 scan.ply -o features.npz`."""

from geo3d.cli import command_line, encode

if __name__ == "__main__":
    command_line.run(encode.main, "encode.py")
