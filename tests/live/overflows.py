"""Programs that make the kernel drop what a socket has no room for."""

# A listener of backlog 1 that never accepts, and clients that give up after a moment; says how many
# of them got through their handshake.
OVERFLOW_ACCEPT_QUEUE = """
import select, socket, struct
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen(1)
clients = [socket.socket() for _ in range(40)]
for client in clients:
    client.setblocking(False)
    client.connect_ex(listener.getsockname())
print(len(select.select([], clients, [], 1)[1]))
for each in clients:  # a reset, so that nothing is sent again later
    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    each.close()
"""
