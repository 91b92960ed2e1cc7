"""Makes `python -m benches` work."""

from benches.run import run

if __name__ == "__main__":
    run()
