"""`geo3d export` from a checkout: `python tools/export.py --checkpoint runs/spark3d-001 -o encoder.pt2`."""

from geo3d.cli import command_line, export

if __name__ == "__main__":
    command_line.run(export.main, "export.py")
