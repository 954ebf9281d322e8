/* The grid's load: many connections to an echo server, every echoed byte compared.
 *
 *   grid_load PORT PID CORE CONNECTIONS SIZE DEPTH IDLE WARM_UP SECONDS
 *
 * Opens IDLE connections that exchange one message and then say nothing, and CONNECTIONS that keep DEPTH messages of
 * SIZE bytes in flight for WARM_UP and then for SECONDS; reads process PID's CPU clock and memory from outside.  Prints
 * one JSON line, keeps the connections open until standard input ends, and exits with status 1, and why, if anything
 * else came back than was sent.
 *
 * What a connection sends is a piece of one endless sequence whose period is a prime, so that no message is the one
 * before it, nor its neighbour's: a stale or crossed echo is seen.  A loop around epoll, and two system calls for each
 * message: whatever is measured has more to do.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    PERIOD = 65537, /* a prime */
    CHUNK = 64 * 1024,
    READ_SIZE = 256 * 1024,
    AT_ONCE = 64,          /* connections opened before the first of them is answered: no backlog overflows */
    PATIENCE = 20 * 1000,  /* milliseconds without any echo after which a server is taken for dead */
    EVENTS = 256,
};

typedef struct connection {
    int fd, writable_wanted;
    uint64_t start;                   /* where in the sequence it begins */
    uint64_t target, sent, received; /* bytes: to be sent by now, sent, and echoed */
} connection;

static uint8_t sequence[PERIOD + CHUNK], incoming[READ_SIZE];
static connection *connections;
static unsigned opened;
static int epoll_fd;
static uint64_t size, depth, messages;

static void die(const char *what)
{
    fprintf(stderr, "grid_load: %s%s%s\n", what, errno ? ": " : "", errno ? strerror(errno) : "");
    exit(1);
}

static double seconds(clockid_t clock)
{
    struct timespec now;
    if (clock_gettime(clock, &now) < 0)
        die("reading a clock");
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void watch(connection *c, int operation, int writable)
{
    struct epoll_event event = {EPOLLIN | (writable ? EPOLLOUT : 0), {.ptr = c}};
    c->writable_wanted = writable;
    if (epoll_ctl(epoll_fd, operation, c->fd, &event) < 0)
        die("epoll_ctl");
}

static void send_what_is_due(connection *c)
{
    while (c->sent < c->target) {
        uint64_t left = c->target - c->sent;
        ssize_t count = write(c->fd, sequence + (c->start + c->sent) % PERIOD, left < CHUNK ? left : CHUNK);
        if (count < 0 && errno == EAGAIN) {
            if (!c->writable_wanted)
                watch(c, EPOLL_CTL_MOD, 1);
            return;
        }
        if (count < 0)
            die("sending");
        c->sent += (uint64_t)count;
    }
    if (c->writable_wanted)
        watch(c, EPOLL_CTL_MOD, 0);
}

static void receive(connection *c)
{
    ssize_t count = read(c->fd, incoming, sizeof incoming);
    if (count < 0 && errno == EAGAIN)
        return;
    if (count <= 0)
        die(count ? "receiving" : "the server hung up");
    if (c->received + (uint64_t)count > c->sent)
        die("more came back than was sent");
    for (ssize_t at = 0; at < count;) {
        ssize_t length = count - at < CHUNK ? count - at : CHUNK;
        if (memcmp(incoming + at, sequence + (c->start + c->received + (uint64_t)at) % PERIOD, (size_t)length))
            die("an echo differs from what was sent");
        at += length;
    }
    uint64_t before = c->received / size;
    c->received += (uint64_t)count;
    messages += c->received / size - before;
}

/* Whatever the sockets are ready for; `more`: keep `depth` messages in flight. */
static void turn(int more)
{
    struct epoll_event events[EVENTS];
    int count = epoll_wait(epoll_fd, events, EVENTS, PATIENCE);
    if (count < 0 && errno != EINTR)
        die("epoll_wait");
    if (count == 0) {
        errno = 0;
        die("the echoes do not come");
    }
    for (int i = 0; i < count; i++) {
        connection *c = events[i].data.ptr;
        if (events[i].events & ~(uint32_t)EPOLLOUT)
            receive(c);
        if (more)
            c->target = (c->received / size + depth) * size;
        send_what_is_due(c);
    }
}

/* Until all that was sent by connections `first` to `end` has come back. */
static void settle(unsigned first, unsigned end)
{
    for (unsigned i = first; i < end; i++)
        while (connections[i].received < connections[i].target)
            turn(0);
}

static void open_connections(uint16_t port, unsigned count)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    unsigned end = opened + count, first = opened;
    for (; opened < end; opened++) {
        connection *c = &connections[opened];
        int yes = 1;
        c->fd = socket(AF_INET, SOCK_STREAM, 0);
        if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0)
            die("connecting");
        if (setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes) < 0)
            die("TCP_NODELAY");
        if (fcntl(c->fd, F_SETFL, O_NONBLOCK) < 0)
            die("O_NONBLOCK");
        c->start = (uint64_t)opened * 7919;
        c->target = size;
        watch(c, EPOLL_CTL_ADD, 0);
        send_what_is_due(c);
        if (opened - first == AT_ONCE) {
            settle(first, opened + 1);
            first = opened;
        }
    }
    settle(first, end);
}

/* Bytes of memory that are resident, of the process alone: what it shares with others is not counted. */
static long private_bytes(const char *pid)
{
    char path[64], line[128];
    long found = -1, number;
    snprintf(path, sizeof path, "/proc/%s/smaps_rollup", pid);
    FILE *file = fopen(path, "r");
    if (!file)
        die(path);
    while (fgets(line, sizeof line, file))
        if (sscanf(line, "Anonymous: %ld", &number) == 1)
            found = number * 1024;
    fclose(file);
    return found;
}

int main(int count, char **words)
{
    if (count != 10) {
        fputs("usage: grid_load PORT PID CORE CONNECTIONS SIZE DEPTH IDLE WARM_UP SECONDS\n", stderr);
        return 2;
    }
    unsigned active = (unsigned)atoi(words[4]), idle = (unsigned)atoi(words[7]);
    double warm_up = atof(words[8]), duration = atof(words[9]);
    cpu_set_t cores;
    CPU_ZERO(&cores);
    CPU_SET(atoi(words[3]), &cores);
    clockid_t server;
    struct rlimit files;
    if (sched_setaffinity(0, sizeof cores, &cores) < 0 || getrlimit(RLIMIT_NOFILE, &files) < 0)
        die("setting up");
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    errno = clock_getcpuclockid(atoi(words[2]), &server);
    if (errno)
        die("the server's clock");
    for (unsigned i = 0, state = 1; i < PERIOD; i++)
        sequence[i] = (uint8_t)((state = state * 1103515245u + 12345u) >> 16);
    memcpy(sequence + PERIOD, sequence, CHUNK);
    size = (uint64_t)atoll(words[5]);
    depth = (uint64_t)atoll(words[6]);
    connections = calloc(active + idle, sizeof *connections);
    epoll_fd = epoll_create1(0);
    if (!connections || epoll_fd < 0 || !size || !depth || !active)
        die("setting up");

    long before = private_bytes(words[2]);
    open_connections((uint16_t)atoi(words[1]), idle);
    long after = private_bytes(words[2]);
    open_connections((uint16_t)atoi(words[1]), active);

    for (unsigned i = idle; i < opened; i++) {
        connections[i].target = connections[i].received + depth * size;
        send_what_is_due(&connections[i]);
    }
    double began = seconds(CLOCK_MONOTONIC), now;
    while (seconds(CLOCK_MONOTONIC) - began < warm_up)
        turn(1);
    uint64_t first = messages;
    double cpu = seconds(server), own = seconds(CLOCK_PROCESS_CPUTIME_ID);
    began = seconds(CLOCK_MONOTONIC);
    while ((now = seconds(CLOCK_MONOTONIC)) - began < duration)
        turn(1);
    cpu = seconds(server) - cpu;
    own = seconds(CLOCK_PROCESS_CPUTIME_ID) - own;
    first = messages - first;
    settle(0, opened);
    for (unsigned i = 0; i < opened; i++)
        if (recv(connections[i].fd, incoming, 1, MSG_DONTWAIT) >= 0 || errno != EAGAIN)
            die("something more came, or the end");
    printf("{\"messages\": %llu, \"wall\": %.9f, \"cpu\": %.9f, \"load\": %.9f, \"idle\": %ld}\n",
           (unsigned long long)first, now - began, cpu, own, after - before);
    fflush(stdout);
    while (read(0, incoming, sizeof incoming) > 0)
        ;
    return 0;
}
