"""FastStream on Redis Streams: a handler for up to 100 messages at once."""

from tests.bench.peers.faststream import main

if __name__ == "__main__":
    main(batch=True)
