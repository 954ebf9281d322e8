/* The memory region of a ring: memory that both sides see, and the wait arguments in it.
 *
 * Ownership.  Whoever registers a region keeps its memory alive until the ring is closed; the kernel has the pages
 * pinned until then, and a region cannot be unregistered.  Memory that the kernel allocated is mapped where the kernel
 * likes (it refuses a given address).  That mapping holds the ring's file open, and a file that is open keeps its
 * requests running (KERNEL.md E2), so closing the ring puts ordinary pages with the same bytes in its place: views of
 * it stay valid.  A fork's child does not inherit the mapping (MADV_DONTFORK); there zeros take its place.  When the
 * last view is gone, untouched pages take the place of that: the memory is given back, the addresses are not, because
 * the garbage collector may call us while a finalizer that is still to run has a view.
 */
#include "uring.h"

#ifndef MAP_FIXED_NOREPLACE /* since Linux 4.17 */
#define MAP_FIXED_NOREPLACE 0x100000
#endif

static void *ordinary_pages(void *memory, size_t bytes, int how)
{
    return mmap(memory, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | how, -1, 0);
}

static void region_let_go(au_ring *ring)
{
    if (ring->region_mapped) {
        void *bytes = ring->region_forgotten ? NULL : malloc(ring->region_bytes);
        if (bytes)
            memcpy(bytes, ring->region, ring->region_bytes);
        if (ordinary_pages(ring->region, ring->region_bytes, MAP_FIXED) != MAP_FAILED && bytes)
            memcpy(ring->region, bytes, ring->region_bytes);
        free(bytes);
    }
    ring->region = NULL;
    ring->region_mapped = false;
    ring->wait_slots = 0;
}

static void region_in_child(au_ring *ring)
{
    if (ring->region_mapped)
        ordinary_pages(ring->region, ring->region_bytes, MAP_FIXED_NOREPLACE); /* another handler may have been first */
    ring->region = NULL;
    ring->region_mapped = false;
    ring->wait_slots = 0;
}

/* Nobody looks at a kernel's region any more.  While its ring is open the kernel may: then closing does this. */
void au_region_forget(au_ring *ring, void *memory, uint64_t bytes)
{
    if (ring->region == memory)
        ring->region_forgotten = true;
    else if (memory)
        ordinary_pages(memory, bytes, MAP_FIXED);
}

/* Register `memory`, whole pages of the caller's; or, where it is NULL, let the kernel allocate as much, and map it.
 * `ring->region` is where it lies.  The kernel refuses a second region. */
int au_ring_register_region(au_ring *ring, void *memory, uint64_t bytes, int wait_arguments)
{
    bool mapped = memory == NULL;
    struct au_region_desc region = {.size = bytes};
    struct au_mem_region_reg registration = {.region_uptr = (uint64_t)(uintptr_t)&region};
    if (!mapped) {
        region.user_addr = (uint64_t)(uintptr_t)memory;
        region.flags = AU_MEM_REGION_TYPE_USER;
    }
    if (wait_arguments)
        registration.flags = AU_MEM_REGION_REG_WAIT_ARG;
    int rc = au_ring_register(ring, AU_REGISTER_MEM_REGION, &registration, 1);
    if (rc < 0)
        return rc;
    if (mapped) {
        memory = map(ring->fd, bytes, region.mmap_offset);
        if (!memory)
            return -errno;
    }
    ring->region = memory;
    ring->region_bytes = bytes;
    ring->region_mapped = mapped;
    /* One fewer than there is room for: the kernel takes the last one for the first (KERNEL.md C10). */
    ring->wait_slots = wait_arguments ? (uint32_t)(bytes / sizeof(struct au_reg_wait)) - 1 : 0;
    return 0;
}

/* Write a registered wait argument; a negative time is none. */
int au_ring_set_wait(au_ring *ring, uint32_t slot, int64_t time_ns, uint32_t min_wait_usec)
{
    int rc = au_ring_check(ring);
    if (rc < 0)
        return rc;
    if (slot >= ring->wait_slots)
        return AU_BAD_INDEX;
    struct au_reg_wait argument = {.min_wait_usec = min_wait_usec};
    if (time_ns >= 0) {
        argument.time = (struct au_timespec){time_ns / 1000000000, time_ns % 1000000000};
        argument.flags = AU_REG_WAIT_TS;
    }
    memcpy(ring->region + slot * sizeof argument, &argument, sizeof argument);
    return 0;
}
