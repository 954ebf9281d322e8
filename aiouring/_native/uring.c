/* The C core owns the memory shared with the kernel: the two queues, the table of registered buffers
 * and the rings of provided buffers; and the table that says which file is in which slot.  Python sees integers and opaque handles, never an address it
 * could get wrong.
 *
 * How this fits together
 *
 * 1. A ring is made disabled and is enabled by the thread that will use it; from then on that thread
 *    alone may touch it.  Every entry point checks that, and that this is still the process that made
 *    the ring: our mappings are MADV_DONTFORK, so a child that touched them would crash.  A fork
 *    handler closes the child's copies of our descriptors, because a child that keeps the ring's file
 *    open keeps the parent's requests alive after the parent has closed it (KERNEL.md E3).
 *
 * 2. au_prepare*() fill one submission entry each.  Nothing reaches the kernel before au_ring_turn(),
 *    which publishes returned buffers, submits everything in one enter(), drains the completions into
 *    a flat array of integers, empties the eventfd and *looks again*: what arrives while it works
 *    would otherwise be slept upon (KERNEL.md C1, E4, E5).
 *
 * 3. A request that is filled but not submitted must not meet a descriptor that was closed and opened
 *    again in between, or one connection's bytes go to another (KERNEL.md E12).  A caller that names a
 *    file by a bare number has the file's identity (device, inode) noted when the request is filled and
 *    compared before it is submitted: two fstat() per distinct descriptor and turn, not per request.
 *    A mismatch turns the entry's descriptor into -1, and the kernel answers EBADF.  Callers that name
 *    a Python object are checked in Python against the object itself.
 *
 * 4. Each buffer has one owner, kept here.  A registered buffer is free or lent.  A provided buffer is
 *    with the kernel or lent; what the kernel reports and what is returned are checked against that, so
 *    neither a double release nor an over-full ring can be expressed (KERNEL.md E8).
 *
 * The structures themselves are allocated by Python (ffi.new) and freed with their last reference.  A
 * finalizer must not free them: the garbage collector runs the finalizers of a whole cycle first, and some
 * coroutine's may still want to cancel its request on a ring that was "finalized" a moment before.  Closing
 * leaves the structure valid and every function answering AU_CLOSED.
 *
 * Functions return 0 or a count, a negative errno from the kernel, or a negative enum au_rule.
 */
#include "ring.c"
#include "eventfd.c"
#include "region.c"
#include "buffers.c"
#include "shares.c"
#include "entries.c"
#include "messages.c"
#include "groups.c"
#include "bundles.c"
#include "senders.c"
#include "files.c"
#include "cached.c"
#include "waits.c"
#include "turn.c"
#include "objects.c"
