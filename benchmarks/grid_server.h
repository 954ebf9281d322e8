/* What the two echo servers in C have in common: the socket, and how they talk with whoever started them. */
#ifndef GRID_SERVER_H
#define GRID_SERVER_H
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BUFFER = 64 * 1024, FILES_MAX = 32 * 1024, LIFETIME = 600 };

static void die(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

/* Keep to a core, listen on a free port, and say which. */
static int begin(const char *core)
{
    cpu_set_t cores;
    CPU_ZERO(&cores);
    CPU_SET(atoi(core), &cores);
    struct rlimit files;
    if (sched_setaffinity(0, sizeof cores, &cores) < 0 || getrlimit(RLIMIT_NOFILE, &files) < 0)
        die("setting up");
    files.rlim_cur = files.rlim_max < FILES_MAX ? files.rlim_max : FILES_MAX;
    setrlimit(RLIMIT_NOFILE, &files);
    alarm(LIFETIME); /* a forgotten server dies */
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 256) < 0 ||
        getsockname(listener, (struct sockaddr *)&address, &size) < 0)
        die("listening");
    printf("{\"port\": %d, \"pid\": %d}\n", ntohs(address.sin_port), (int)getpid());
    fflush(stdout);
    return listener;
}

/* Something is to be read on standard input: a question for statistics, of which there are none, or the end. */
static void answer(void)
{
    char byte;
    if (read(0, &byte, 1) != 1)
        exit(0);
    puts("{}");
    fflush(stdout);
}

static void send_at_once(int fd)
{
    int yes = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
}

#endif
