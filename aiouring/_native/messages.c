/* Messages: what sendmsg sends, from several places, and to whom; what recvmsg receives, and from whom.
 *
 * Ownership.  Python allocates a message and keeps it, with the memory of its parts and of its control data, until
 * the request's final completion; the kernel reads the header and the vector when it takes the request, and the parts
 * until the end.  Of a receive it writes the header, the address and the control data, at any moment until the end.
 */
#include "uring.h"

static int add_to_message(au_message *message, uint8_t *start, int64_t length)
{
    if (message->count == message->capacity)
        return AU_BAD_LENGTH;
    message->vector[message->count++] = (struct iovec){start, (size_t)length};
    message->header.msg_iov = message->vector;
    message->header.msg_iovlen = message->count;
    return 0;
}

/* Add `length` bytes at `memory` + `start`. */
int au_message_add(au_message *message, const void *memory, int64_t capacity, int64_t start, int64_t length)
{
    if (!inside(capacity, start, length))
        return AU_BAD_LENGTH;
    return add_to_message(message, (uint8_t *)(uintptr_t)memory + start, length);
}

/* Add a range of a registered buffer; all parts of such a message lie in the same one. */
int au_message_add_fixed(au_message *message, au_buffers *buffers, uint64_t key, int64_t start, int64_t length)
{
    struct au_slot *slot;
    int rc = slot_for_request(buffers->ring, buffers, key, &slot);
    if (rc < 0)
        return rc;
    if (!inside((int64_t)slot->size, start, length))
        return AU_BAD_LENGTH;
    return add_to_message(message, slot->base + start, length);
}

int au_message_address(au_message *message, const char *address, uint32_t size)
{
    if (size > sizeof message->address)
        return AU_BAD_LENGTH;
    memcpy(&message->address, address, size);
    message->header.msg_name = &message->address;
    message->header.msg_namelen = size;
    return 0;
}

/* Control data, to be sent or received: all of `memory`, which Python keeps as long as the message. */
int au_message_control(au_message *message, void *memory, int64_t capacity)
{
    if (capacity < 0 || capacity > AU_MAX_CONTROL)
        return AU_BAD_LENGTH;
    message->control_size = (size_t)capacity;
    message->header.msg_control = capacity ? memory : NULL;
    message->header.msg_controllen = (size_t)capacity;
    return 0;
}

/* After a receive: from whom, its length in bytes.  One that was cut off has the length of what is there. */
int au_message_name(const au_message *message, char *name, uint32_t room)
{
    uint32_t length = message->header.msg_namelen;
    if (length > sizeof message->address)
        length = sizeof message->address;
    if (length > room)
        return AU_BAD_LENGTH;
    memcpy(name, &message->address, length);
    return (int)length;
}

/* ... how much of the control data's memory was written, and what recvmsg(2) calls msg_flags. */
int64_t au_message_control_size(const au_message *message)
{
    size_t size = message->header.msg_controllen;
    return (int64_t)(size < message->control_size ? size : message->control_size);
}

int au_message_flags(const au_message *message) { return message->header.msg_flags; }

/* Reading into, or writing from, the parts of a message: readv, writev. */
int au_prepare_vector(au_ring *ring, uint64_t user_data, int opcode, int fd, au_message *message, int64_t offset,
                      uint64_t how)
{
    struct au_sqe *sqe;
    if (offset < -1)
        return AU_BAD_OFFSET;
    int rc = next_entry(ring, user_data, opcode, fd, how, &sqe);
    if (rc < 0)
        return rc;
    sqe->off = (uint64_t)offset;
    sqe->addr = (uint64_t)(uintptr_t)message->vector;
    sqe->len = message->count;
    sqe->op_flags = rw_flags(how);
    return 0;
}

/* `buffers` is NULL, or the table of the registered buffer that all parts lie in, and `key` names it there. */
int au_prepare_message(au_ring *ring, uint64_t user_data, int opcode, int fd, au_message *message,
                       au_buffers *buffers, uint64_t key, uint32_t op_flags, uint64_t how)
{
    struct au_sqe *sqe;
    struct au_slot *slot;
    int rc = buffers ? slot_for_request(ring, buffers, key, &slot) : 0;
    if (rc < 0)
        return rc;
    rc = next_entry(ring, user_data, opcode, fd, how, &sqe);
    if (rc < 0)
        return rc;
    sqe->addr = (uint64_t)(uintptr_t)&message->header;
    sqe->len = 1;
    sqe->op_flags = op_flags;
    if (buffers) {
        sqe->ioprio |= AU_RECVSEND_FIXED_BUF;
        sqe->buf_index = (uint16_t)(key & AU_SLOT_MASK);
    }
    return 0;
}

/* Put back what an earlier receive wrote into the header. */
static void renew_message(au_message *message)
{
    message->header.msg_name = &message->address;
    message->header.msg_namelen = sizeof message->address;
    message->header.msg_controllen = message->control_size;
    message->header.msg_flags = 0;
}

/* How much of each buffer a multishot receive is to keep free for names and control data. */
int au_message_room(au_message *message, uint32_t name_size, int64_t control_size)
{
    if (name_size > AU_MAX_NAME || control_size < 0 || control_size > AU_MAX_CONTROL)
        return AU_BAD_LENGTH;
    message->header.msg_namelen = name_size;
    message->header.msg_controllen = (size_t)control_size;
    return 0;
}

/* Have the entry that was filled last name the message. */
static int name_message(au_ring *ring, au_message *message, uint32_t op_flags)
{
    struct au_sqe *sqe = &ring->sqes[(ring->filled - 1) & ring->sq_mask];
    sqe->addr = (uint64_t)(uintptr_t)&message->header;
    sqe->len = 1;
    sqe->op_flags = op_flags;
    return 0;
}

/* A receive. */
int au_prepare_receive_message(au_ring *ring, uint64_t user_data, int opcode, int fd, au_message *message,
                               uint32_t op_flags, uint64_t how)
{
    renew_message(message);
    return au_prepare_message(ring, user_data, opcode, fd, message, NULL, 0, op_flags, how);
}

/* A zero-copy send from a registered buffer. */
int au_prepare_send_fixed(au_ring *ring, uint64_t user_data, int opcode, int fd, au_buffers *buffers, uint64_t key,
                          int64_t start, int64_t length, uint32_t op_flags, uint64_t how)
{
    int rc = au_prepare_fixed(ring, user_data, opcode, fd, buffers, key, start, length, 0,
                              how | (uint64_t)AU_RECVSEND_FIXED_BUF << 16);
    if (rc == 0)
        ring->sqes[(ring->filled - 1) & ring->sq_mask].op_flags = op_flags;
    return rc;
}

/* Family, type and protocol of a socket.  Python can ask by an object only, which closes the descriptor when an
 * interrupt drops it. */
int au_socket_kind(int fd, int32_t *kind)
{
    static const int options[] = {SO_DOMAIN, SO_TYPE, SO_PROTOCOL};
    for (int i = 0; i < 3; i++) {
        socklen_t size = sizeof *kind;
        if (getsockopt(fd, SOL_SOCKET, options[i], kind + i, &size) < 0)
            return -errno;
    }
    return 0;
}
