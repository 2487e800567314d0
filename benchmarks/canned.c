/* A canned responder: the ceiling of what a client such as pgbench can drive on this machine.
 *
 * It speaks just enough of the PostgreSQL protocol to keep pgbench busy: trust login, then the same one-row answer to
 * every query, in the simple and in the extended protocol. One thread, epoll, no allocation while it runs. It looks at
 * message types and lengths only. Loopback only. Not a server: never put it before people.
 *
 * usage: canned PORT
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_FD 20000
#define IN_SIZE 16384
#define OUT_SIZE 65536

struct client {
    int started;
    size_t used;
    unsigned char in[IN_SIZE];
};

static struct client *clients[MAX_FD];
static unsigned char out[OUT_SIZE];
static size_t out_used;

static void put(const void *bytes, size_t n)
{
    if (out_used + n <= OUT_SIZE) {
        memcpy(out + out_used, bytes, n);
        out_used += n;
    }
}

#define PUT(text) put(text, sizeof(text) - 1)

static const char DESCRIPTION[] =
    "T\0\0\0\x21\0\1abalance\0\0\0\0\0\0\0\0\0\0\x17\0\4\xff\xff\xff\xff\0\0";
static const char ROW[] = "D\0\0\0\x0b\0\1\0\0\0\1" "0";
static const char COMPLETE[] = "C\0\0\0\x0dSELECT 1\0";
static const char READY[] = "Z\0\0\0\5I";

static void parameter(const char *name, const char *value)
{
    size_t n = strlen(name) + 1, v = strlen(value) + 1;
    unsigned char head[5] = {'S'};
    unsigned int length = htonl((unsigned int)(4 + n + v));
    memcpy(head + 1, &length, 4);
    put(head, 5);
    put(name, n);
    put(value, v);
}

static void welcome(void)
{
    PUT("R\0\0\0\x08\0\0\0\0");
    parameter("server_version", "15.0");
    parameter("server_encoding", "UTF8");
    parameter("client_encoding", "UTF8");
    parameter("standard_conforming_strings", "on");
    parameter("integer_datetimes", "on");
    parameter("DateStyle", "ISO, MDY");
    PUT("K\0\0\0\x0c\0\0\0\1\0\0\0\1");
    PUT(READY);
}

static unsigned int length_at(const unsigned char *p)
{
    return ((unsigned int)p[0] << 24) | ((unsigned int)p[1] << 16) | ((unsigned int)p[2] << 8) | p[3];
}

/* Answers every whole message; returns 0 when the client is to be closed. */
static int answer(struct client *c)
{
    size_t at = 0;
    while (c->used - at >= 5) {
        unsigned char *p = c->in + at;
        if (!c->started) {
            size_t n = length_at(p);
            if (n < 8 || n > IN_SIZE)
                return 0;
            if (c->used - at < n)
                break;
            unsigned int code = length_at(p + 4);
            if (code == 80877103 || code == 80877104) {
                PUT("N");
            } else if ((code >> 16) == 3) {
                c->started = 1;
                welcome();
            } else {
                return 0;
            }
            at += n;
            continue;
        }
        size_t n = (size_t)length_at(p + 1) + 1;
        if (n < 5 || n > IN_SIZE)
            return 0;
        if (c->used - at < n)
            break;
        switch (p[0]) {
        case 'Q':
            PUT(DESCRIPTION);
            PUT(ROW);
            PUT(COMPLETE);
            PUT(READY);
            break;
        case 'P':
            PUT("1\0\0\0\4");
            break;
        case 'B':
            PUT("2\0\0\0\4");
            break;
        case 'D':
            PUT(DESCRIPTION);
            break;
        case 'E':
            PUT(ROW);
            PUT(COMPLETE);
            break;
        case 'C':
            PUT("3\0\0\0\4");
            break;
        case 'S':
            PUT(READY);
            break;
        case 'H':
            break;
        default:
            return 0;
        }
        at += n;
    }
    memmove(c->in, c->in + at, c->used - at);
    c->used -= at;
    return c->used < IN_SIZE;
}

static void drop(int fd)
{
    free(clients[fd]);
    clients[fd] = NULL;
    close(fd);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: canned PORT\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    struct rlimit files = {MAX_FD, MAX_FD};
    setrlimit(RLIMIT_NOFILE, &files);
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), poll = epoll_create1(0);
    struct sockaddr_in where = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[1]))};
    where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&where, sizeof where) || listen(listener, 1024)) {
        perror("canned");
        return 1;
    }
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, ready[256];
    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int n = epoll_wait(poll, ready, 256, -1);
        for (int i = 0; i < n; i++) {
            int fd = ready[i].data.fd;
            if (fd == listener) {
                int client = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
                if (client < 0)
                    continue;
                if (client >= MAX_FD || !(clients[client] = calloc(1, sizeof(struct client)))) {
                    close(client);
                    continue;
                }
                setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                event = (struct epoll_event){.events = EPOLLIN, .data.fd = client};
                epoll_ctl(poll, EPOLL_CTL_ADD, client, &event);
                continue;
            }
            struct client *c = clients[fd];
            ssize_t got = read(fd, c->in + c->used, IN_SIZE - c->used);
            if (got < 0 && errno == EAGAIN)
                continue;
            out_used = 0;
            if (got <= 0) {
                drop(fd);
                continue;
            }
            c->used += (size_t)got;
            int open = answer(c);
            /* Answers are small and pgbench reads them at once: a short write means that it went away. */
            if (out_used && write(fd, out, out_used) != (ssize_t)out_used)
                open = 0;
            if (!open)
                drop(fd);
        }
    }
}
