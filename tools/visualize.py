"""`geo3d visualize` from a checkout: `python tools/visualize.py scene --data scan.ply`."""

from geo3d.cli import command_line, visualize

if __name__ == "__main__":
    command_line.run(visualize.main, "visualize.py")
