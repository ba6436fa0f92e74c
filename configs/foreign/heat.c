/* The heat equation in one dimension on any number of ranks, with halo exchange. Usage: heat CELLS STEPS R
 * Rank 0 writes profile.csv and metrics.json into the directory it is started in. The sum is made in the order of the
 * cells, so that it does not depend on the number of ranks. With R above 0.5 the scheme is unstable: exit code 78. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
  MPI_Init(&argc, &argv);
  int rank, ranks;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  if (argc != 4 || atoi(argv[1]) % ranks != 0) {
    if (rank == 0) fprintf(stderr, "usage: heat CELLS STEPS R, with CELLS a multiple of the ranks\n");
    MPI_Finalize();
    return 64;
  }
  const int cells = atoi(argv[1]), steps = atoi(argv[2]), own = cells / ranks;
  const double r = atof(argv[3]);
  if (r > 0.5) {
    if (rank == 0) {
      FILE *file = fopen("evidence.json", "w");
      if (file) {
        fprintf(file, "{\"reason\": \"unstable: R must not be above 0.5\", \"r\": %g}\n", r);
        fclose(file);
      }
    }
    MPI_Finalize();
    return 78;
  }

  double *now = calloc(own + 2, sizeof *now), *next = calloc(own + 2, sizeof *next);
  /* A hot spot in the middle. */
  for (int i = 0; i < own; i++) now[i + 1] = rank * own + i == cells / 2 ? 100.0 : 0.0;
  const int left = rank > 0 ? rank - 1 : MPI_PROC_NULL, right = rank + 1 < ranks ? rank + 1 : MPI_PROC_NULL;
  for (int step = 0; step < steps; step++) {
    MPI_Sendrecv(&now[1], 1, MPI_DOUBLE, left, 0, &now[own + 1], 1, MPI_DOUBLE, right, 0, MPI_COMM_WORLD,
                 MPI_STATUS_IGNORE);
    MPI_Sendrecv(&now[own], 1, MPI_DOUBLE, right, 1, &now[0], 1, MPI_DOUBLE, left, 1, MPI_COMM_WORLD,
                 MPI_STATUS_IGNORE);
    for (int i = 1; i <= own; i++) next[i] = now[i] + r * (now[i - 1] - 2 * now[i] + now[i + 1]);
    double *swap = now;
    now = next;
    next = swap;
  }

  double *all = rank == 0 ? malloc(cells * sizeof *all) : NULL;
  MPI_Gather(&now[1], own, MPI_DOUBLE, all, own, MPI_DOUBLE, 0, MPI_COMM_WORLD);
  int code = 0;
  if (rank == 0) {
    double sum = 0, most = 0;
    FILE *profile = fopen("profile.csv", "w"), *metrics = fopen("metrics.json", "w");
    if (!profile || !metrics) {
      perror("heat");
      MPI_Abort(MPI_COMM_WORLD, 73);
    }
    for (int i = 0; i < cells; i++) {
      sum += all[i];
      if (all[i] > most) most = all[i];
      fprintf(profile, "%d,%.17g\n", i, all[i]);
    }
    fprintf(metrics, "{\"heat\": {\"sum\": %.17g, \"most\": %.17g}, \"cells\": %d}\n", sum, most, cells);
    if (fclose(profile) || fclose(metrics)) code = 73;
  }
  MPI_Finalize();
  return code;
}
