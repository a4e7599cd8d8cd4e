"""`geo3d probe` from a checkout: `python tools/probe.py linear --checkpoint runs/spark3d-001`."""

from geo3d.cli import command_line, probe

if __name__ == "__main__":
    command_line.run(probe.main, "probe.py")
