/* Reading what is in the page cache, without a request.
 *
 * preadv2(RWF_NOWAIT) is the very attempt with which the kernel begins a buffered read that is submitted: it copies what
 * is there, and says EAGAIN where it would wait for a disk.  Nothing of the memory is the kernel's when it returns.
 *
 * Whoever is answered at once does not wait, and so lets nobody else run.  A ring therefore gives only so many bytes
 * away like this from one of its turns to the next; who wants more waits for that turn, and then gets one read, however
 * many others want theirs: as one request would be answered.
 */
#include "uring.h"

#ifndef __NR_preadv2
#if defined(__x86_64__)
#define __NR_preadv2 327
#else
#define __NR_preadv2 286 /* where the numbers are the common ones, as on aarch64 */
#endif
#endif

/* What a read costs besides its bytes is counted as so many bytes. */
enum { READ_COST = 12 * 1024 };

/* Read `length` bytes at `offset` to `memory`, from `start` on.  Returns how many were there: 0 where the kernel says
 * that the file ends (older kernels said so of what was not there), -EAGAIN where it would wait, and AU_FULL where the
 * ring has given away what it may until its next turn, unless the reader has `waited` for one. */
int64_t au_read_cached(au_ring *ring, int fd, void *memory, int64_t capacity, int64_t start, int64_t length,
                       int64_t offset, int waited)
{
    int rc = au_ring_check(ring);
    if (rc < 0)
        return rc;
    if (start < 0 || length < 0 || start > capacity || length > capacity - start)
        return AU_BAD_LENGTH;
    if (offset < 0)
        return AU_BAD_OFFSET;
    if (ring->given_away >= AU_CACHED_MAX && !waited)
        return AU_FULL;
    ring->given_away += (uint64_t)length + READ_COST;
    struct iovec place = {(uint8_t *)memory + start, (size_t)length};
    long count = syscall(__NR_preadv2, fd, &place, 1L, (long)offset, (long)((uint64_t)offset >> 32), AU_RWF_NOWAIT);
    return count < 0 ? -errno : count;
}
