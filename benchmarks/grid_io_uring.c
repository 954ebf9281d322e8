/* The grid's limits for completions: an echo server on io_uring, `grid_io_uring CORE` or `grid_io_uring guest CORE`.
 *
 * The way that is told to be the fastest: one thread and one system call for each turn (submit and wait), a multishot
 * accept, a multishot receive for each connection, all of them from one ring of buffers, and each buffer sent as it
 * came and then given back.  A connection sends one buffer at a time, in order.  When there are no buffers left, the
 * receives end (ENOBUFS); they are armed again when buffers come back.
 *
 * As a guest it is the same, but does not wait in io_uring_enter: it sleeps in epoll, as an event loop does that knows
 * nothing of the ring, until the ring's eventfd wakes it, which it then has to read.  The eventfd is silent meanwhile.
 * That is the limit for whoever brings io_uring to a loop that is there already.
 */
#include "grid_server.h"

#include "uapi.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>

enum { SQ_ENTRIES = 4096, CQ_ENTRIES = 16384, BUFFERS = 256, GROUP = 1, NO_BUFFER = -1 };
enum { ACCEPT, RECEIVE, SEND, INPUT }; /* in the upper half of user_data; the descriptor in the lower */

typedef struct connection {
    int first, last; /* the buffers that are to be sent, linked by `next_buffer`; the first is being sent */
    uint32_t done;   /* bytes of the first that are sent */
    int armed, over; /* whether the receive is in the kernel; whether nothing more is to be received */
    int next_starved;
} connection;

static connection connections[FILES_MAX];
static int next_buffer[BUFFERS], starved = -1;
static uint32_t lengths[BUFFERS];
static uint8_t *memory;
static struct au_buf *group;
static uint16_t group_tail;
static unsigned returned; /* buffers, in this turn */

static int ring_fd, event_fd = -1, epoll_fd = -1;
static uint32_t *sq_head, *sq_tail, *cq_head, *cq_tail, *cq_flags, sq_mask, cq_mask, filled;
static struct au_sqe *sqes;
static struct au_cqe *cqes;

static uint32_t load(const uint32_t *shared) { return __atomic_load_n(shared, __ATOMIC_ACQUIRE); }

static void enter(unsigned wait_for)
{
    __atomic_store_n(sq_tail, filled, __ATOMIC_RELEASE);
    unsigned count = filled - load(sq_head);
    long rc = syscall(SYS_io_uring_enter, ring_fd, count, wait_for, AU_ENTER_GETEVENTS, NULL, (size_t)0);
    if (rc < 0 && errno != EINTR && errno != EBUSY)
        die("io_uring_enter");
}

static struct au_sqe *entry(int opcode, int fd, unsigned kind)
{
    while (filled - load(sq_head) > sq_mask)
        enter(0);
    struct au_sqe *sqe = &sqes[filled++ & sq_mask];
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = (uint8_t)opcode;
    sqe->fd = fd;
    sqe->user_data = (uint64_t)kind << 32 | (uint32_t)fd;
    return sqe;
}

static void *map(size_t bytes, int fd, off_t offset)
{
    int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED | MAP_POPULATE;
    void *mapped = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, fd, offset);
    if (mapped == MAP_FAILED)
        die("mmap");
    return mapped;
}

static void add_buffer(int number)
{
    struct au_buf *buf = &group[group_tail++ & (BUFFERS - 1)];
    buf->addr = (uint64_t)(uintptr_t)(memory + (size_t)number * BUFFER);
    buf->len = BUFFER;
    buf->bid = (uint16_t)number;
    returned++;
}

static void set_up(void)
{
    struct au_params params = {.cq_entries = CQ_ENTRIES};
    params.flags = AU_SETUP_CQSIZE | AU_SETUP_CLAMP | AU_SETUP_SUBMIT_ALL | AU_SETUP_SINGLE_ISSUER |
                   AU_SETUP_COOP_TASKRUN | AU_SETUP_TASKRUN_FLAG;
    ring_fd = (int)syscall(SYS_io_uring_setup, SQ_ENTRIES, &params);
    if (ring_fd < 0)
        die("io_uring_setup");
    size_t sq_end = params.sq_off.array + params.sq_entries * sizeof(uint32_t);
    size_t cq_end = params.cq_off.cqes + params.cq_entries * sizeof *cqes;
    uint8_t *rings = map(sq_end > cq_end ? sq_end : cq_end, ring_fd, AU_OFF_SQ_RING);
    sqes = map(params.sq_entries * sizeof *sqes, ring_fd, AU_OFF_SQES);
    sq_head = (uint32_t *)(rings + params.sq_off.head);
    sq_tail = (uint32_t *)(rings + params.sq_off.tail);
    cq_head = (uint32_t *)(rings + params.cq_off.head);
    cq_tail = (uint32_t *)(rings + params.cq_off.tail);
    cq_flags = (uint32_t *)(rings + params.cq_off.flags);
    cqes = (struct au_cqe *)(rings + params.cq_off.cqes);
    sq_mask = params.sq_entries - 1;
    cq_mask = params.cq_entries - 1;
    for (uint32_t i = 0; i < params.sq_entries; i++)
        ((uint32_t *)(rings + params.sq_off.array))[i] = i;
    memory = map((size_t)BUFFERS * BUFFER, -1, 0);
    group = map(BUFFERS * sizeof *group, -1, 0);
    struct au_buf_reg reg = {.ring_addr = (uint64_t)(uintptr_t)group, .ring_entries = BUFFERS, .bgid = GROUP};
    if (syscall(SYS_io_uring_register, ring_fd, AU_REGISTER_PBUF_RING, &reg, 1) < 0)
        die("registering the buffers");
    for (int i = 0; i < BUFFERS; i++)
        add_buffer(i);
}

static void arm(int fd)
{
    struct au_sqe *sqe = entry(AU_OP_RECV, fd, RECEIVE);
    sqe->flags = AU_SQE_BUFFER_SELECT;
    sqe->ioprio = AU_RECV_MULTISHOT;
    sqe->buf_index = GROUP;
    connections[fd].armed = 1;
}

static void send_first(int fd)
{
    connection *c = &connections[fd];
    struct au_sqe *sqe = entry(AU_OP_SEND, fd, SEND);
    sqe->addr = (uint64_t)(uintptr_t)(memory + (size_t)c->first * BUFFER + c->done);
    sqe->len = lengths[c->first] - c->done;
    sqe->op_flags = MSG_NOSIGNAL | MSG_WAITALL;
}

static void close_if_over(int fd)
{
    connection *c = &connections[fd];
    if (c->over && !c->armed && c->first == NO_BUFFER)
        close(fd);
}

static void accepted(const struct au_cqe *cqe, int listener)
{
    if (!(cqe->flags & AU_CQE_F_MORE))
        entry(AU_OP_ACCEPT, listener, ACCEPT)->ioprio = AU_ACCEPT_MULTISHOT;
    if (cqe->res < 0)
        return;
    if (cqe->res >= FILES_MAX)
        exit(1);
    connections[cqe->res] = (connection){.first = NO_BUFFER, .last = NO_BUFFER};
    send_at_once(cqe->res);
    arm(cqe->res);
}

static void received(const struct au_cqe *cqe, int fd)
{
    connection *c = &connections[fd];
    if (!(cqe->flags & AU_CQE_F_MORE))
        c->armed = 0;
    if (cqe->res > 0) {
        int number = (int)(cqe->flags >> AU_CQE_BUFFER_SHIFT);
        lengths[number] = (uint32_t)cqe->res;
        next_buffer[number] = NO_BUFFER;
        if (c->first != NO_BUFFER) {
            next_buffer[c->last] = number;
            c->last = number;
        } else {
            c->first = c->last = number;
            c->done = 0;
            send_first(fd);
        }
        if (!c->armed && !c->over)
            arm(fd);
    } else if (cqe->res == -ENOBUFS) {
        c->next_starved = starved;
        starved = fd;
        c->armed = 1; /* it will be */
    } else {
        c->over = 1;
        close_if_over(fd);
    }
}

static void sent(const struct au_cqe *cqe, int fd)
{
    connection *c = &connections[fd];
    if (cqe->res <= 0)
        c->over = 1;
    c->done += cqe->res > 0 ? (uint32_t)cqe->res : 0;
    if (cqe->res > 0 && c->done < lengths[c->first]) {
        send_first(fd);
        return;
    }
    do {
        add_buffer(c->first);
        c->first = next_buffer[c->first];
    } while (c->over && c->first != NO_BUFFER);
    c->done = 0;
    if (c->first != NO_BUFFER)
        send_first(fd);
    close_if_over(fd);
}

/* Show the kernel what came back, and then let those who had to wait receive again. */
static void publish(void)
{
    __atomic_store_n(&group[0].reserved, group_tail, __ATOMIC_RELEASE);
    for (; returned && starved >= 0; returned--) {
        int fd = starved;
        starved = connections[fd].next_starved;
        arm(fd);
    }
    returned = 0;
}

static void be_a_guest(void)
{
    event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN};
    if (event_fd < 0 || epoll_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, event_fd, &event) < 0 ||
        syscall(SYS_io_uring_register, ring_fd, AU_REGISTER_EVENTFD, &event_fd, 1) < 0)
        die("registering the eventfd");
    __atomic_store_n(cq_flags, AU_CQ_EVENTFD_DISABLED, __ATOMIC_RELEASE);
}

/* Submit, and sleep until something has completed. */
static void submit_and_sleep(void)
{
    if (filled != load(sq_head))
        enter(0);
    __atomic_store_n(cq_flags, 0, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (*cq_head == load(cq_tail)) {
        struct epoll_event event;
        uint64_t signals;
        while (epoll_wait(epoll_fd, &event, 1, -1) < 0)
            if (errno != EINTR)
                die("epoll_wait");
        if (read(event_fd, &signals, sizeof signals) < 0)
            die("reading the eventfd");
    }
    __atomic_store_n(cq_flags, AU_CQ_EVENTFD_DISABLED, __ATOMIC_RELEASE);
}

int main(int count, char **words)
{
    int guest = count == 3 && !strcmp(words[1], "guest");
    if (count != 2 + guest)
        return 2;
    signal(SIGPIPE, SIG_IGN);
    int listener = begin(words[1 + guest]);
    set_up();
    if (guest)
        be_a_guest();
    entry(AU_OP_ACCEPT, listener, ACCEPT)->ioprio = AU_ACCEPT_MULTISHOT;
    entry(AU_OP_POLL_ADD, 0, INPUT)->op_flags = POLLIN;
    for (;;) {
        publish();
        if (guest)
            submit_and_sleep();
        else
            enter(1);
        uint32_t head = *cq_head, tail = load(cq_tail);
        for (; head != tail; head++) {
            const struct au_cqe *cqe = &cqes[head & cq_mask];
            int fd = (int)(uint32_t)cqe->user_data;
            switch (cqe->user_data >> 32) {
            case ACCEPT: accepted(cqe, fd); break;
            case RECEIVE: received(cqe, fd); break;
            case SEND: sent(cqe, fd); break;
            case INPUT:
                answer();
                entry(AU_OP_POLL_ADD, 0, INPUT)->op_flags = POLLIN;
            }
        }
        __atomic_store_n(cq_head, head, __ATOMIC_RELEASE);
    }
}
