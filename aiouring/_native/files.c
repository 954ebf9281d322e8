/* The table of registered files: which file is in each slot.
 *
 * Every file that is put into a slot gets a serial, a number that this process does not use twice.  A request
 * names a slot together with the serial of the file it means, and next_entry() compares: a descriptor that
 * outlived its file, or is of another ring, never reaches the kernel.
 *
 * What has been filled but not submitted is looked at when a slot changes: the entry loses its descriptor, and the
 * kernel answers EBADF.  So a queued request never meets the file that took the place of its own (KERNEL.md E12
 * for slots), at no cost to those that use no slots.  Requests that were submitted hold their file themselves.
 */
#include "uring.h"

static uint32_t next_serial(void)
{
    static uint32_t last;
    uint32_t serial;
    do
        serial = __atomic_add_fetch(&last, 1, __ATOMIC_RELAXED);
    while (serial == 0);
    return serial;
}

/* Another file, or none, is in `count` slots from `index` on, but for those that `fds` skips: what is queued on them
 * must not meet it. */
static void disarm_slots(au_ring *ring, uint32_t index, uint32_t count, const int32_t *fds)
{
    for (uint32_t at = load(ring->sq_head); at != ring->filled; at++) {
        struct au_sqe *sqe = &ring->sqes[at & ring->sq_mask];
        uint32_t entry = (uint32_t)sqe->fd - index;
        if ((sqe->flags & AU_SQE_FIXED_FILE) && entry < count && !(fds && fds[entry] == AU_FILES_SKIP))
            sqe->fd = -1;
    }
}

/* Register `count` files, AU_FILES_EMPTY for gaps. */
int au_files_register(au_ring *ring, int32_t *fds, uint32_t count)
{
    int rc = au_ring_check(ring);
    if (rc < 0)
        return rc;
    if (ring->slots)
        return -EBUSY;
    uint32_t *slots = calloc(count, sizeof *slots);
    if (!slots)
        return -ENOMEM;
    rc = au_kernel.do_register(ring->fd, AU_REGISTER_FILES, fds, count);
    if (rc < 0) {
        free(slots);
        return rc;
    }
    for (uint32_t i = 0; i < count; i++)
        slots[i] = fds[i] >= 0 ? next_serial() : 0;
    ring->slots = slots;
    ring->slot_count = count;
    return 0;
}

int au_files_unregister(au_ring *ring)
{
    int rc = au_ring_check(ring);
    if (rc < 0)
        return rc;
    if (!ring->slots)
        return 0;
    rc = au_kernel.do_register(ring->fd, AU_UNREGISTER_FILES, NULL, 0);
    if (rc < 0)
        return rc;
    disarm_slots(ring, 0, ring->slot_count, NULL);
    free(ring->slots);
    ring->slots = NULL;
    ring->slot_count = 0;
    return 0;
}

/* Replace what is in `count` slots from `index` on.  Returns how many entries were done.  The kernel empties a slot
 * before it looks at the descriptor that is to go there: where it stopped, the slot is empty now. */
int au_files_update(au_ring *ring, uint32_t index, int32_t *fds, uint32_t count)
{
    int rc = au_ring_check(ring);
    if (rc < 0)
        return rc;
    if (index > ring->slot_count || count > ring->slot_count - index)
        return AU_BAD_SLOT;
    struct au_files_update update = {.offset = index, .fds = (uint64_t)(uintptr_t)fds};
    rc = au_kernel.do_register(ring->fd, AU_REGISTER_FILES_UPDATE, &update, count);
    uint32_t done = rc < 0 ? 0 : (uint32_t)rc;
    uint32_t changed = done < count ? done + 1 : count;
    for (uint32_t i = 0; i < changed; i++)
        if (fds[i] != AU_FILES_SKIP)
            ring->slots[index + i] = i < done && fds[i] >= 0 ? next_serial() : 0;
    disarm_slots(ring, index, changed, fds);
    return rc;
}

/* The serial of the file in a slot, 0 for none. */
int64_t au_slot_serial(au_ring *ring, uint32_t index)
{
    int rc = au_ring_check(ring);
    if (rc < 0)
        return rc;
    return index < ring->slot_count ? ring->slots[index] : 0;
}

/* What is in a slot, where a request that was submitted changes it: 0 while it is in doubt or empty, the serial that
 * it had where it stayed, and AU_SLOT_FILLED for a file that has come. */
int64_t au_slot_set(au_ring *ring, uint32_t index, int64_t serial)
{
    int rc = au_ring_check(ring);
    if (rc < 0)
        return rc;
    if (index >= ring->slot_count || serial > UINT32_MAX)
        return AU_BAD_SLOT;
    ring->slots[index] = serial == AU_SLOT_FILLED ? next_serial() : (uint32_t)serial;
    return ring->slots[index];
}

/* How many slots hold a file. */
int64_t au_slots_used(au_ring *ring)
{
    int rc = au_ring_check(ring);
    if (rc < 0)
        return rc;
    int64_t used = 0;
    for (uint32_t i = 0; i < ring->slot_count; i++)
        used += ring->slots[i] != 0;
    return used;
}
