/* Submission entries: filling them, and the descriptors they name. */
#include "uring.h"

/* ---- guarded descriptors ---------------------------------------------------------------------- */

static bool is_ring(int fd)
{
    char path[40], target[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(path, target, sizeof target);
    return length == 21 && memcmp(target, "anon_inode:[io_uring]", 21) == 0;
}

static void forget_guards(au_ring *ring)
{
    if (ring->guards_used) {
        memset(ring->guard_of, 0, ring->sq_entries);
        ring->guards_used = 0;
    }
}

/* Note what `fd` is now.  Returns 1 + the number of its guard. */
static int guard(au_ring *ring, int fd)
{
    if (ring->filled == load(ring->sq_head))
        forget_guards(ring); /* those of entries that were taken back */
    for (uint32_t i = ring->guards_used; i-- > 0;)
        if (ring->guards[i].fd == fd)
            return (int)i + 1;
    if (ring->guards_used == AU_SLOTS_AT_ONCE)
        return AU_FULL;
    struct stat status;
    if (fstat(fd, &status) < 0)
        return -errno;
    /* A request on an io_uring never completes; its inode is one of those without a type. */
    if ((status.st_mode & S_IFMT) == 0 && is_ring(fd))
        return AU_RING_FD;
    ring->guards[ring->guards_used] = (struct guard){fd, status.st_dev, status.st_ino};
    return (int)++ring->guards_used;
}

/* Take the descriptor away from every entry whose file is no longer what it was. */
static void verify_guards(au_ring *ring)
{
    for (uint32_t i = 0; i < ring->guards_used; i++) {
        struct stat status;
        const struct guard *g = &ring->guards[i];
        if (fstat(g->fd, &status) == 0 && status.st_dev == g->device && status.st_ino == g->inode)
            continue;
        for (uint32_t at = load(ring->sq_head); at != ring->filled; at++)
            if (ring->guard_of[at & ring->sq_mask] == i + 1)
                ring->sqes[at & ring->sq_mask].fd = -1;
    }
}

int au_ring_disarm(au_ring *ring, uint64_t user_data)
{
    int rc = au_ring_check(ring);
    if (rc < 0)
        return rc;
    for (uint32_t at = load(ring->sq_head); at != ring->filled; at++) {
        struct au_sqe *sqe = &ring->sqes[at & ring->sq_mask];
        if (sqe->user_data == user_data) {
            sqe->fd = -1;
            return 1;
        }
    }
    return 0;
}

/* ---- chains ------------------------------------------------------------------------------------- */

enum { LINKS = AU_SQE_IO_LINK | AU_SQE_IO_HARDLINK };

/* Bring the entries with these numbers to the end of what is filled, in this order.  Returns how many there are. */
static uint32_t gather(au_ring *ring, const uint64_t *numbers, uint32_t count)
{
    uint32_t found = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t at = load(ring->sq_head);
        while (at != ring->filled && ring->sqes[at & ring->sq_mask].user_data != numbers[i])
            at++;
        if (at == ring->filled)
            continue;
        struct au_sqe sqe = ring->sqes[at & ring->sq_mask];
        uint8_t guard = ring->guard_of[at & ring->sq_mask];
        for (; at + 1 != ring->filled; at++) {
            ring->sqes[at & ring->sq_mask] = ring->sqes[(at + 1) & ring->sq_mask];
            ring->guard_of[at & ring->sq_mask] = ring->guard_of[(at + 1) & ring->sq_mask];
        }
        ring->sqes[at & ring->sq_mask] = sqe;
        ring->guard_of[at & ring->sq_mask] = guard;
        found++;
    }
    return found;
}

/* Make a chain of entries that are filled and not submitted: each starts when the one before it has succeeded. */
int au_ring_link(au_ring *ring, const uint64_t *numbers, uint32_t count)
{
    int rc = au_ring_check(ring);
    if (rc < 0)
        return rc;
    if (gather(ring, numbers, count) != count)
        return AU_BAD_INDEX;
    uint32_t first = ring->filled - count;
    for (uint32_t i = 0; i < count; i++)
        if (ring->sqes[(first + i) & ring->sq_mask].flags & AU_SQE_FIXED_FILE)
            return AU_LATE_SLOT;
    for (uint32_t i = 0; i + 1 < count; i++)
        ring->sqes[(first + i) & ring->sq_mask].flags |= AU_SQE_IO_LINK;
    return 0;
}

/* Take entries back that are filled and not submitted.  Returns how many there were. */
int au_ring_take_back(au_ring *ring, const uint64_t *numbers, uint32_t count)
{
    int rc = au_ring_check(ring);
    if (rc < 0)
        return rc;
    uint32_t found = gather(ring, numbers, count);
    ring->filled -= found;
    store(ring->sq_tail, ring->filled);
    return (int)found;
}

/* The kernel took only some of what was submitted.  A chain that was cut by that is over for the kernel: what is left
 * of it must not run as if nothing had been before it, and gets an operation that there is none of (EINVAL). */
static void end_cut_chain(au_ring *ring)
{
    uint32_t at = load(ring->sq_head);
    while (at != ring->filled && ring->sqes[(at - 1) & ring->sq_mask].flags & LINKS)
        ring->sqes[at++ & ring->sq_mask].opcode = UINT8_MAX;
}

/* ---- slots of the table of registered files ---------------------------------------------------- */

enum {
    STARTS_LATE = LINKS | AU_SQE_IO_DRAIN | AU_SQE_ASYNC,
};

/* The index that `fd` stands for, if the slot holds the very file that is meant, and if the kernel is going to look
 * it up as soon as the request is submitted.  In a chain, behind a drain or in a worker it looks later (measured),
 * and would take whatever file is in the slot by then. */
static int slot_index(const au_ring *ring, int fd, uint64_t how)
{
    uint32_t index = (uint32_t)fd - (uint32_t)AU_FIRST_SLOT, serial = (uint32_t)(how >> 32);
    if (index >= ring->slot_count || serial == 0 || ring->slots[index] != serial)
        return AU_BAD_SLOT;
    bool follows = ring->filled != load(ring->sq_head);
    if ((how & STARTS_LATE) || ring->drains ||
        (follows && (ring->sqes[(ring->filled - 1) & ring->sq_mask].flags & LINKS)))
        return AU_LATE_SLOT;
    return (int)index;
}

/* ---- filling submission entries --------------------------------------------------------------- */

/* `how` is AU_SQE_* flags in the low byte, with AU_GUARD_FD where the file was named by number, AU_RWF_* flags
 * shifted by AU_RWF_SHIFT in bits 9 to 15, and what goes into ioprio (AU_RECVSEND_* ...) in bits 16 to 31.  With AU_SQE_FIXED_FILE `fd` is AU_FIRST_SLOT + index,
 * and bits 32 to 63 are the serial of the file that is meant.
 * On success the entry counts as filled: the caller writes the rest and must not fail any more. */
static int next_entry(au_ring *ring, uint64_t user_data, int opcode, int fd, uint64_t how,
                      struct au_sqe **entry)
{
    int rc = au_ring_check(ring);
    if (rc < 0)
        return rc;
    if (ring->filled - load(ring->sq_head) >= ring->sq_entries)
        return AU_FULL;
    int guarded = 0;
    if (how & (AU_GUARD_FD | AU_SQE_FIXED_FILE | AU_SQE_IO_DRAIN)) {
        if (how & AU_SQE_FIXED_FILE)
            rc = fd = slot_index(ring, fd, how);
        else if (how & AU_GUARD_FD)
            rc = guarded = guard(ring, fd);
        if (rc < 0)
            return rc;
        ring->drains |= (how & AU_SQE_IO_DRAIN) != 0;
    }
    uint32_t slot = ring->filled & ring->sq_mask;
    struct au_sqe *sqe = &ring->sqes[slot];
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = (uint8_t)opcode;
    sqe->flags = (uint8_t)(how & 0xff);
    sqe->ioprio = (uint16_t)(how >> 16);
    sqe->fd = fd;
    sqe->user_data = user_data;
    ring->guard_of[slot] = (uint8_t)guarded;
    ring->last_user_data = user_data;
    ring->filled++;
    *entry = sqe;
    return 0;
}

static uint32_t clamp(int64_t length)
{
    return (uint32_t)(length > AU_MAX_TRANSFER ? AU_MAX_TRANSFER : length);
}

/* How a read or write is done (AU_RWF_*), in `how`: an argument of its own would cost every read and write. */
static uint32_t rw_flags(uint64_t how) { return (uint32_t)(how >> AU_RWF_SHIFT) & AU_RWF_MASK; }

int au_prepare(au_ring *ring, uint64_t user_data, int opcode, int fd, int64_t offset,
               uint64_t address, uint32_t length, uint32_t op_flags, uint64_t how)
{
    struct au_sqe *sqe;
    int rc = next_entry(ring, user_data, opcode, fd, how, &sqe);
    if (rc < 0)
        return rc;
    sqe->off = (uint64_t)offset;
    sqe->addr = address;
    sqe->len = length;
    sqe->op_flags = op_flags;
    return 0;
}

int au_prepare_memory(au_ring *ring, uint64_t user_data, int opcode, int fd, const void *memory,
                      int64_t capacity, int64_t start, int64_t length, int64_t offset,
                      uint32_t op_flags, uint64_t how)
{
    struct au_sqe *sqe;
    if (!inside(capacity, start, length))
        return AU_BAD_LENGTH;
    if (offset < -1)
        return AU_BAD_OFFSET;
    int rc = next_entry(ring, user_data, opcode, fd, how, &sqe);
    if (rc < 0)
        return rc;
    sqe->off = (uint64_t)offset;
    sqe->addr = (uint64_t)(uintptr_t)memory + (uint64_t)start;
    sqe->len = clamp(length);
    sqe->op_flags = op_flags | rw_flags(how);
    return 0;
}

int au_prepare_fixed(au_ring *ring, uint64_t user_data, int opcode, int fd, au_buffers *buffers,
                     uint64_t key, int64_t start, int64_t length, int64_t offset, uint64_t how)
{
    struct au_sqe *sqe;
    struct au_slot *slot;
    int rc = slot_for_request(ring, buffers, key, &slot);
    if (rc < 0)
        return rc;
    if (!inside((int64_t)slot->size, start, length))
        return AU_BAD_LENGTH;
    if (offset < -1)
        return AU_BAD_OFFSET;
    rc = next_entry(ring, user_data, opcode, fd, how, &sqe);
    if (rc < 0)
        return rc;
    sqe->off = (uint64_t)offset;
    sqe->addr = (uint64_t)(uintptr_t)slot->base + (uint64_t)start;
    sqe->len = clamp(length);
    sqe->op_flags = rw_flags(how);
    sqe->buf_index = (uint16_t)(key & AU_SLOT_MASK);
    return 0;
}

/* The same for several ranges inside one buffer: `ranges` holds start and length of each.  What the kernel reads
 * is written into `vectors`, which the caller keeps until the request's final completion. */
int au_prepare_fixed_vector(au_ring *ring, uint64_t user_data, int opcode, int fd, au_buffers *buffers, uint64_t key,
                            struct iovec *vectors, const int64_t *ranges, uint32_t count, int64_t offset, uint64_t how)
{
    struct au_sqe *sqe;
    struct au_slot *slot;
    int rc = slot_for_request(ring, buffers, key, &slot);
    if (rc < 0)
        return rc;
    if (count == 0 || count > AU_MAX_VECTORS)
        return AU_BAD_LENGTH;
    int64_t total = 0;
    for (uint32_t i = 0; i < count; i++) {
        int64_t start = ranges[2 * i], length = ranges[2 * i + 1];
        if (length == 0 || !inside((int64_t)slot->size, start, length))
            return AU_BAD_LENGTH; /* an empty range is EFAULT to the kernel (KERNEL.md C6) */
        total += length;
        if (total > AU_MAX_TRANSFER)
            return AU_BAD_LENGTH;
        vectors[i] = (struct iovec){slot->base + start, (size_t)length};
    }
    if (offset < -1)
        return AU_BAD_OFFSET;
    rc = next_entry(ring, user_data, opcode, fd, how, &sqe);
    if (rc < 0)
        return rc;
    sqe->off = (uint64_t)offset;
    sqe->addr = (uint64_t)(uintptr_t)vectors;
    sqe->len = count;
    sqe->op_flags = rw_flags(how);
    sqe->buf_index = (uint16_t)(key & AU_SLOT_MASK);
    return 0;
}

/* Both descriptors are looked up by a worker, later: the caller keeps them, whatever becomes of the files' others. */
int au_prepare_splice(au_ring *ring, uint64_t user_data, int opcode, int fd, int64_t offset, int source,
                      int64_t source_offset, int64_t length, uint64_t how)
{
    struct au_sqe *sqe;
    if (offset < -1 || source_offset < -1)
        return AU_BAD_OFFSET;
    if (source < 0)
        return -EBADF;
    if (length < 0)
        return AU_BAD_LENGTH;
    int rc = next_entry(ring, user_data, opcode, fd, how, &sqe);
    if (rc < 0)
        return rc;
    sqe->off = (uint64_t)offset;
    sqe->addr = (uint64_t)source_offset;
    sqe->len = clamp(length);
    sqe->file_index = source; /* splice_fd_in, here */
    return 0;
}

int au_prepare_select(au_ring *ring, uint64_t user_data, int opcode, int fd, au_group *group,
                      int64_t length, int64_t offset, uint32_t op_flags, uint64_t how)
{
    struct au_sqe *sqe;
    if (group->ring != ring)
        return AU_BAD_INDEX;
    if (!group->registered)
        return AU_CLOSED;
    if (length < 0 || length > group->size)
        return AU_BAD_LENGTH;
    int rc = group->incremental ? check_shares(group, user_data, opcode, fd, how) : 0;
    if (rc == 0)
        rc = next_entry(ring, user_data, opcode, fd, how | AU_SQE_BUFFER_SELECT, &sqe);
    if (rc < 0)
        return rc;
    sqe->off = (uint64_t)offset;
    sqe->len = (uint32_t)length;
    sqe->op_flags = op_flags;
    sqe->buf_index = group->group_id;
    return 0;
}

/* Into `file_index` goes 1 + a slot, 0 for an ordinary descriptor, or AU_FILE_INDEX_ALLOC.  Python says -1 for the
 * ordinary descriptor, and keeps the ownership of slots: which may be filled, and which is about to be. */
static bool slot_fits(const au_ring *ring, int64_t slot, uint32_t count)
{
    return slot == -1 || slot == AU_FILE_INDEX_ALLOC || (slot >= 0 && slot + count <= ring->slot_count);
}

/* An operation without memory whose result goes into a slot, or that closes one: socket, accept, close. */
int au_prepare_slot(au_ring *ring, uint64_t user_data, int opcode, int fd, int64_t offset, uint32_t length,
                    uint32_t op_flags, int64_t slot, uint64_t how)
{
    struct au_sqe *sqe;
    if (!slot_fits(ring, slot, 1))
        return AU_BAD_SLOT;
    int rc = next_entry(ring, user_data, opcode, fd, how, &sqe);
    if (rc < 0)
        return rc;
    sqe->off = (uint64_t)offset;
    sqe->len = length;
    sqe->op_flags = op_flags;
    sqe->file_index = (int32_t)(slot == AU_FILE_INDEX_ALLOC ? slot : slot + 1);
    return 0;
}

/* An operation on names: what they are and what is written, the kernel's three address fields in their order.
 *
 * openat: path.  openat2: path, au_open_how.  statx: path, au_statx.  renameat, linkat, symlinkat: path, new path, and
 * the new one's directory in `length`.  unlinkat, mkdirat: path.  getxattr, setxattr: name, value, path; the forms for
 * a descriptor have no path.  A worker of the kernel may find the directories later: whoever names one keeps it open.
 * The names are copied when the entry is submitted, the rest is used until the completion; the request keeps both. */
int au_prepare_path(au_ring *ring, uint64_t user_data, int opcode, int fd, const void *first, const void *second,
                    const void *third, uint32_t length, uint32_t op_flags, int64_t slot, uint64_t how)
{
    struct au_sqe *sqe;
    if (!slot_fits(ring, slot, 1))
        return AU_BAD_SLOT;
    int rc = next_entry(ring, user_data, opcode, fd, how, &sqe);
    if (rc < 0)
        return rc;
    sqe->addr = (uint64_t)(uintptr_t)first;
    sqe->off = (uint64_t)(uintptr_t)second;
    sqe->addr3 = (uint64_t)(uintptr_t)third;
    sqe->len = length;
    sqe->op_flags = op_flags;
    sqe->file_index = (int32_t)(slot == AU_FILE_INDEX_ALLOC ? slot : slot + 1);
    return 0;
}

/* An operation on an array of descriptors or slots, which the kernel reads and may write until the completion:
 * pipe (two of them, written), files_update (`count` of them; written where `slot` is AU_FILE_INDEX_ALLOC). */
int au_prepare_array(au_ring *ring, uint64_t user_data, int opcode, int32_t *array, uint32_t count, int64_t slot,
                     uint32_t op_flags, unsigned how)
{
    struct au_sqe *sqe;
    if (!slot_fits(ring, slot, count) || (slot == -1 && opcode != AU_OP_PIPE))
        return AU_BAD_SLOT;
    if (opcode == AU_OP_PIPE && count != 2)
        return AU_BAD_LENGTH;
    int rc = next_entry(ring, user_data, opcode, -1, how, &sqe);
    if (rc < 0)
        return rc;
    sqe->addr = (uint64_t)(uintptr_t)array;
    if (opcode == AU_OP_PIPE) {
        sqe->fd = 0;
        sqe->op_flags = op_flags;
        sqe->file_index = (int32_t)(slot == AU_FILE_INDEX_ALLOC ? slot : slot + 1);
    } else {
        sqe->len = count;
        sqe->off = (uint64_t)slot; /* AU_FILE_INDEX_ALLOC here as well */
    }
    return 0;
}

/* A command to a socket.  The kernel reads or writes the option's value, `length` bytes at `memory`, until the request's
 * final completion. */
int au_prepare_socket_command(au_ring *ring, uint64_t user_data, int opcode, int fd, uint32_t command, uint32_t level,
                              uint32_t option, void *memory, uint32_t length, uint64_t how)
{
    struct au_sqe *sqe;
    int rc = next_entry(ring, user_data, opcode, fd, how, &sqe);
    if (rc < 0)
        return rc;
    sqe->off = command;
    sqe->addr = level | (uint64_t)option << 32;
    sqe->file_index = (int32_t)length; /* optlen, here */
    sqe->addr3 = (uint64_t)(uintptr_t)memory;
    return 0;
}
