/* The grid's limit for readiness: an echo server around epoll, `grid_epoll CORE`.
 *
 * One buffer for all connections.  What a socket does not take is copied and kept with its connection, which then
 * reads nothing more until all of it is sent.
 */
#include "grid_server.h"

#include <sys/epoll.h>

typedef struct connection {
    int fd;
    uint8_t *kept; /* `left` bytes of it from `start` on are still to be sent */
    size_t start, left;
} connection;

static uint8_t buffer[BUFFER];
static int epoll_fd;

static void watch(connection *c, int operation, uint32_t events)
{
    struct epoll_event event = {events, {.ptr = c}};
    if (epoll_ctl(epoll_fd, operation, c->fd, &event) < 0)
        die("epoll_ctl");
}

static void end(connection *c)
{
    close(c->fd);
    free(c->kept);
    free(c);
}

static void send_kept(connection *c)
{
    ssize_t sent = write(c->fd, c->kept + c->start, c->left);
    if (sent < 0 && errno != EAGAIN) {
        end(c);
        return;
    }
    c->start += sent > 0 ? (size_t)sent : 0;
    c->left -= sent > 0 ? (size_t)sent : 0;
    if (!c->left)
        watch(c, EPOLL_CTL_MOD, EPOLLIN);
}

static void echo(connection *c)
{
    ssize_t count = read(c->fd, buffer, sizeof buffer);
    if (count <= 0) {
        if (count == 0 || errno != EAGAIN)
            end(c);
        return;
    }
    ssize_t sent = write(c->fd, buffer, (size_t)count);
    if (sent == count)
        return;
    if (sent < 0 && errno != EAGAIN) {
        end(c);
        return;
    }
    sent = sent < 0 ? 0 : sent;
    if (!c->kept && !(c->kept = malloc(BUFFER)))
        die("malloc");
    c->start = 0;
    c->left = (size_t)(count - sent);
    memcpy(c->kept, buffer + sent, c->left);
    watch(c, EPOLL_CTL_MOD, EPOLLOUT);
}

int main(int count, char **words)
{
    connection input = {.fd = 0}, listener = {.fd = -1};
    if (count != 2)
        return 2;
    signal(SIGPIPE, SIG_IGN);
    listener.fd = begin(words[1]);
    fcntl(listener.fd, F_SETFL, O_NONBLOCK);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    watch(&input, EPOLL_CTL_ADD, EPOLLIN);
    watch(&listener, EPOLL_CTL_ADD, EPOLLIN);
    for (;;) {
        struct epoll_event events[256];
        int ready = epoll_wait(epoll_fd, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            connection *c = events[i].data.ptr;
            if (c == &input) {
                answer();
            } else if (c == &listener) {
                int fd;
                while ((fd = accept4(listener.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
                    connection *new = calloc(1, sizeof *new);
                    if (!new)
                        die("calloc");
                    new->fd = fd;
                    send_at_once(fd);
                    watch(new, EPOLL_CTL_ADD, EPOLLIN);
                }
            } else if (c->left) {
                send_kept(c);
            } else {
                echo(c);
            }
        }
    }
}
