/* Load for an HTTP/1.1 server: one fixed request over many connections, every answer counted by its status.
 *
 *     cc -O2 -o load load.c && ./load 127.0.0.1 8000 request.bin --connections 32 --seconds 3
 *
 * Closed loop (default): each connection asks again as soon as it has its answer. That gives the peak.
 * Open loop (--rate N): a request is due every 1/N s whether or not earlier ones were answered, and its time counts
 * from when it was due, not from when a connection was free; so a server that stalls cannot hide it. A request that
 * no connection takes until the end is counted as never sent. In an open loop a request belongs to the window if it
 * was due in it, in a closed loop if its answer came in it; "ok_per_s" are the answers 200 that came in the window.
 *
 * Prints one JSON line when the window begins, one when it ends, and one with the figures.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MICROS 1000000 /* a bin for each microsecond of the first second ... */
#define MILLIS 120000  /* ... and for each millisecond of the first two minutes */
#define HEAD 16384
#define INTERVAL_NS 100000000LL
#define INTERVALS 3000
#define PAUSE_NS 10000000LL /* before a connection that could not be made is tried again */

typedef int64_t ns_t;

struct histogram {
    uint64_t count;
    double sum_ns;
    ns_t worst_ns;
    uint32_t micros[MICROS], millis[MILLIS];
};

struct connection {
    int fd; /* -1: closed */
    bool busy, answered, closing, retry_after;
    size_t written, head_size;
    long long body_left; /* -1: the head is not complete */
    long long body_size;
    int status;
    ns_t due; /* in a closed loop: when it was sent */
    char head[HEAD];
};

struct interval {
    uint32_t ok, refused, other;
    ns_t worst_ok_ns;
};

static struct sockaddr_in address;
static char *request;
static size_t request_size;
static int limit = 32, epoll_fd;
static double rate, seconds = 3, warm_up_s = 0.3, drain_s = 5;

static struct connection *connections;
static int *idle, idle_count, opened, busy_count;
static struct histogram accepted, refused, late;
static struct interval intervals[INTERVALS];
static uint64_t ok, refused_429, refused_503, other, broken, hinted, ok_in_window, sent_count, due_count;
static long long body_least = -1, body_most = -1;
static ns_t start, end, origin;
static uint64_t next_number; /* of the next request of the schedule */

static ns_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

/* Times */

static void record(struct histogram *histogram, ns_t took) {
    ns_t micro = took / 1000, milli = took / 1000000;
    histogram->count++;
    histogram->sum_ns += took;
    if (took > histogram->worst_ns) histogram->worst_ns = took;
    if (micro < MICROS) histogram->micros[micro < 0 ? 0 : micro]++;
    else histogram->millis[milli < MILLIS ? milli : MILLIS - 1]++;
}

static double quantile_ms(const struct histogram *histogram, double part) {
    uint64_t rank = (uint64_t)(part * histogram->count), seen = 0;
    for (int i = 0; i < MICROS; i++)
        if ((seen += histogram->micros[i]) > rank) return i / 1e3;
    for (int i = 0; i < MILLIS; i++)
        if ((seen += histogram->millis[i]) > rank) return i;
    return histogram->worst_ns / 1e6;
}

static void print_histogram(const char *name, const struct histogram *histogram) {
    if (!histogram->count) {
        printf("\"%s\": null, ", name);
        return;
    }
    printf("\"%s\": {\"count\": %llu, \"p50\": %.3f, \"p90\": %.3f, \"p99\": %.3f, \"p999\": %.3f, \"mean\": %.3f, "
           "\"worst\": %.3f}, ",
           name, (unsigned long long)histogram->count, quantile_ms(histogram, .5), quantile_ms(histogram, .9),
           quantile_ms(histogram, .99), quantile_ms(histogram, .999), histogram->sum_ns / histogram->count / 1e6,
           histogram->worst_ns / 1e6);
}

/* Connections */

static void open_connection(struct connection *connection) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    if (fd < 0) fail("socket");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0 && errno != EINPROGRESS) fail("connect");
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = connection};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) fail("epoll_ctl");
    connection->fd = fd;
    opened++;
}

static void close_connection(struct connection *connection) {
    for (int i = 0; !connection->busy && i < idle_count; i++)
        if (idle[i] == connection - connections) {
            memmove(idle + i, idle + i + 1, (--idle_count - i) * sizeof *idle);
            break;
        }
    if (connection->busy) busy_count--;
    connection->busy = false;
    close(connection->fd);
    connection->fd = -1;
    opened--;
}

static bool counts(ns_t due, ns_t now) {
    ns_t moment = rate > 0 ? due : now;
    return moment >= start && moment < end;
}

static void lose(struct connection *connection) {
    if (connection->busy && !connection->answered && counts(connection->due, now_ns())) broken++;
    close_connection(connection);
}

static void count_answer(struct connection *connection) {
    ns_t now = now_ns(), took = now - connection->due;
    bool is_ok = connection->status == 200, is_refusal = connection->status == 429 || connection->status == 503;
    ns_t place = now >= start ? (now - start) / INTERVAL_NS : -1;
    if (place >= 0 && place < INTERVALS) {
        struct interval *interval = &intervals[place];
        *(is_ok ? &interval->ok : is_refusal ? &interval->refused : &interval->other) += 1;
        if (is_ok && took > interval->worst_ok_ns) interval->worst_ok_ns = took;
    }
    if (is_ok && now >= start && now < end) ok_in_window++;
    if (!counts(connection->due, now)) return;
    if (is_ok) {
        ok++;
        record(&accepted, took);
        if (body_least < 0 || connection->body_size < body_least) body_least = connection->body_size;
        if (connection->body_size > body_most) body_most = connection->body_size;
    } else if (is_refusal) {
        *(connection->status == 429 ? &refused_429 : &refused_503) += 1;
        hinted += connection->retry_after;
        record(&refused, took);
    } else {
        other++;
    }
}

/* The answer was read and the request written: the connection is free. */
static void rest(struct connection *connection) {
    if (connection->closing) {
        close_connection(connection);
        return;
    }
    connection->busy = false;
    busy_count--;
    idle[idle_count++] = (int)(connection - connections);
}

/* Answers */

static void parse_head(struct connection *connection, size_t size) {
    char *head = connection->head, *line = head;
    head[size - 2] = 0; /* ends the last header */
    if (sscanf(head, "HTTP/1.1 %d", &connection->status) != 1) connection->status = 0;
    connection->body_left = -1;
    while ((line = strstr(line, "\r\n"))) {
        line += 2;
        if (!strncasecmp(line, "content-length:", 15)) connection->body_left = atoll(line + 15);
        if (!strncasecmp(line, "retry-after:", 12)) connection->retry_after = true;
        if (!strncasecmp(line, "connection: close", 17)) connection->closing = true;
    }
    connection->body_size = connection->body_left;
    if (connection->status == 100) connection->body_left = -1; /* the real answer follows */
    else if (connection->body_left < 0) connection->status = 0;
}

/* Take bytes of an answer. False: they are no answer that this program understands. */
static bool take(struct connection *connection, const char *bytes, size_t size) {
    while (size) {
        if (!connection->busy || connection->answered) return false;
        if (connection->body_left < 0) {
            size_t before = connection->head_size, room = HEAD - 1 - before, part = size < room ? size : room;
            memcpy(connection->head + before, bytes, part);
            connection->head[before + part] = 0;
            char *stop = strstr(connection->head + (before > 3 ? before - 3 : 0), "\r\n\r\n");
            if (!stop && part == room) return false;
            connection->head_size = before + part;
            if (!stop) return true;
            size_t whole = stop + 4 - connection->head;
            parse_head(connection, whole);
            if (connection->status == 0) return false;
            bytes += whole - before, size -= whole - before;
            connection->head_size = 0;
            if (connection->body_left < 0) continue;
        }
        long long part = (long long)size < connection->body_left ? (long long)size : connection->body_left;
        connection->body_left -= part, bytes += part, size -= part;
        if (connection->body_left == 0) {
            count_answer(connection);
            connection->answered = true;
        }
    }
    return true;
}

/* Write what is left of the request. False: it cannot be written, though an early answer may still be there to read. */
static bool push(struct connection *connection) {
    while (connection->busy && connection->written < request_size) {
        ssize_t done = send(connection->fd, request + connection->written, request_size - connection->written,
                            MSG_NOSIGNAL);
        if (done < 0) return errno == EAGAIN;
        connection->written += done;
    }
    return true;
}

static void pull(struct connection *connection) {
    static char buffer[262144];
    while (!(connection->busy && connection->answered && connection->written == request_size)) {
        ssize_t got = recv(connection->fd, buffer, sizeof buffer, 0);
        if (got < 0 && errno == EAGAIN) return;
        if (got <= 0 || !take(connection, buffer, got)) {
            lose(connection);
            return;
        }
    }
    rest(connection);
}

static void ask(struct connection *connection, ns_t due) {
    ns_t now = now_ns();
    connection->busy = true;
    connection->answered = connection->closing = connection->retry_after = false;
    connection->written = connection->head_size = 0;
    connection->body_left = -1;
    connection->due = due ? due : now;
    busy_count++;
    if (due && counts(due, now)) {
        record(&late, now - due);
        sent_count++;
    }
    if (!push(connection)) pull(connection);
}

/* The two loops */

static struct connection *free_connection(void) {
    if (idle_count) return &connections[idle[--idle_count]];
    static int next;
    for (int tried = 0; opened < limit && tried < limit; tried++, next = (next + 1) % limit)
        if (connections[next].fd < 0) {
            open_connection(&connections[next]);
            return &connections[next];
        }
    return NULL;
}

static void ask_on_all(void) {
    struct connection *connection;
    for (int asked = 0; asked < limit && (connection = free_connection()); asked++) ask(connection, 0);
}

static ns_t due_at(uint64_t number) { return origin + (ns_t)(number * (1e9 / rate)); }

static void ask_what_is_due(ns_t now) {
    for (ns_t due; (due = due_at(next_number)) <= now && due < end; next_number++) {
        struct connection *connection = free_connection();
        if (!connection) break;
        ask(connection, due);
    }
}

static void wait_until(ns_t moment) {
    struct epoll_event events[256];
    ns_t left = moment - now_ns();
    if (left < 0) left = 0;
    struct timespec pause = {left / 1000000000LL, left % 1000000000LL};
    int count = epoll_pwait2(epoll_fd, events, 256, &pause, NULL);
    for (int i = 0; i < count; i++) {
        struct connection *connection = events[i].data.ptr;
        if (connection->fd < 0) continue; /* closed by an earlier event of this turn */
        push(connection);
        pull(connection);
    }
}

static double cpu_s(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static double run(void) {
    bool begun = false, ended = false;
    double cpu = 0;
    ns_t pause_over = 0;
    for (;;) {
        ns_t now = now_ns(), next = begun ? end : start;
        if (!begun && now >= start) {
            begun = true, cpu = cpu_s(), next = end;
            puts("{\"window\": \"begins\"}"), fflush(stdout);
        }
        if (!ended && now >= end) {
            ended = true, cpu = cpu_s() - cpu;
            puts("{\"window\": \"is over\"}"), fflush(stdout);
        }
        if (ended && (rate == 0 || busy_count == 0 || now >= end + (ns_t)(drain_s * 1e9))) return cpu / seconds;
        if (ended) {
            next = end + (ns_t)(drain_s * 1e9);
        } else if (rate > 0) {
            ask_what_is_due(now);
            ns_t due = due_at(next_number);
            if (due > now && due < next) next = due;
        } else if (idle_count || (opened < limit && now >= pause_over)) {
            if (opened < limit) pause_over = now + PAUSE_NS;
            ask_on_all();
        }
        if (rate == 0 && opened < limit && pause_over < next) next = pause_over;
        wait_until(next);
    }
}

static void print_figures(double cpu_share) {
    uint64_t answered = ok + refused_429 + refused_503 + other + broken;
    if (rate > 0) for (uint64_t i = 0; due_at(i) < end; i++) due_count += due_at(i) >= start;
    printf("{\"connections\": %d, \"rate\": %.1f, \"seconds\": %.3f, \"ok_per_s\": %.2f, ", limit, rate, seconds,
           ok_in_window / seconds);
    printf("\"ok\": %llu, \"429\": %llu, \"503\": %llu, \"other\": %llu, \"broken\": %llu, \"with_retry_after\": %llu, ",
           (unsigned long long)ok, (unsigned long long)refused_429, (unsigned long long)refused_503,
           (unsigned long long)other, (unsigned long long)broken, (unsigned long long)hinted);
    printf("\"due\": %llu, \"never_sent\": %llu, \"unanswered\": %llu, ", (unsigned long long)due_count,
           (unsigned long long)(rate > 0 ? due_count - sent_count : 0),
           (unsigned long long)(rate > 0 ? sent_count - answered : 0));
    print_histogram("accepted_ms", &accepted);
    print_histogram("refused_ms", &refused);
    print_histogram("late_ms", &late);
    printf("\"body_bytes\": [%lld, %lld], \"cpu_share\": %.3f, \"interval_s\": %.1f, ", body_least, body_most, cpu_share,
           INTERVAL_NS / 1e9);
    printf("\"intervals\": [");
    int last = INTERVALS - 1;
    while (last > 0 && !intervals[last].ok && !intervals[last].refused && !intervals[last].other) last--;
    for (int i = 0; i <= last; i++)
        printf("%s[%u, %u, %u, %.3f]", i ? ", " : "", intervals[i].ok, intervals[i].refused, intervals[i].other,
               intervals[i].worst_ok_ns / 1e6);
    printf("]}\n");
}

static void read_request(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) fail(path);
    request_size = ftell(file);
    rewind(file);
    request = malloc(request_size);
    if (!request || fread(request, 1, request_size, file) != request_size) fail(path);
    fclose(file);
}

static void read_arguments(int count, char **arguments) {
    static const struct option options[] = {{"connections", 1, 0, 'c'}, {"seconds", 1, 0, 's'}, {"warm-up", 1, 0, 'w'},
                                            {"rate", 1, 0, 'r'},        {"drain", 1, 0, 'd'},   {0, 0, 0, 0}};
    for (int option; (option = getopt_long(count, arguments, "", options, NULL)) != -1;) switch (option) {
        case 'c': limit = atoi(optarg); break;
        case 's': seconds = atof(optarg); break;
        case 'w': warm_up_s = atof(optarg); break;
        case 'r': rate = atof(optarg); break;
        case 'd': drain_s = atof(optarg); break;
        default: exit(2);
        }
    bool sound = count - optind == 3 && limit >= 1 && limit <= 20000 && seconds > 0 && seconds <= 300 && rate >= 0;
    if (!sound || inet_pton(AF_INET, arguments[optind], &address.sin_addr) != 1) {
        fprintf(stderr, "usage: load IPV4 PORT REQUEST_FILE [--connections 1..20000] [--seconds S] [--warm-up S] "
                        "[--rate PER_S] [--drain S]\n");
        exit(2);
    }
    address.sin_family = AF_INET;
    address.sin_port = htons((uint16_t)atoi(arguments[optind + 1]));
    read_request(arguments[optind + 2]);
}

int main(int count, char **arguments) {
    read_arguments(count, arguments);
    connections = calloc(limit, sizeof *connections);
    idle = calloc(limit, sizeof *idle);
    if (!connections || !idle) fail("calloc");
    for (int i = 0; i < limit; i++) connections[i].fd = -1;
    struct rlimit files;
    if (!getrlimit(RLIMIT_NOFILE, &files)) files.rlim_cur = files.rlim_max, setrlimit(RLIMIT_NOFILE, &files);
    prctl(PR_SET_TIMERSLACK, 1); /* else the kernel may wake us 50 us late */
    epoll_fd = epoll_create1(0);
    origin = now_ns();
    start = origin + (ns_t)(warm_up_s * 1e9);
    end = start + (ns_t)(seconds * 1e9);
    print_figures(run());
    return 0;
}
